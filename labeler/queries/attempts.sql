-- at which attempt images were finished
with images as (
    select label_run, dataset, image_id, max(attempts) as attempts, bool_and(status in ('ok', 'absent')) as finished
    from labels group by label_run, dataset, image_id
)
select label_run, dataset, finished, attempts, count(*) as images,
    round(100.0 * count(*) / sum(count(*)) over (partition by label_run, dataset), 2) as percent
from images
group by label_run, dataset, finished, attempts
order by label_run, dataset, finished desc, attempts
